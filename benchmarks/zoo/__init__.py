"""The graph zoo: models of many architectures and exporters, on which every rule of the surgery is put to the proof."""
