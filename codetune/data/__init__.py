"""Files to rows to text to tokens to micro-batches; pure, but for the reader of data sets.

files      files, csv_rows, splits, hub, hub_upload
rows       source, mixture, row_formats (the table), row_shapes, tool_calls, ids
text       chat (the table of families), own_template, control_tokens, thinking
tokens     tokens, token_cache, packing
"""
