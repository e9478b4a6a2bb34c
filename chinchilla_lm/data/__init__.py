"""Data: files and hub data sets become records, records become token windows, windows become padded batches."""
