"""SuRP's code: its law, the stream of hits, the range coder and the .surp file, as arrays and bytes."""
