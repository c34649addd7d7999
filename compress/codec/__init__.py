"""SuRP's law: which weights a rate keeps, as arrays in and arrays out."""
