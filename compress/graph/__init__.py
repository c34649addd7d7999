"""The model as data: loading, saving, cleaning, costing, finding and cutting channel spaces."""
