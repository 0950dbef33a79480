"""The run directory. Paths and ownership (run_directory), atomic writes (files), what made an artefact (manifest),
digests of inputs, locks; the data set as read (examples), finished rows of an artefact in the making (block_log), the
artefacts of rows (row_artefacts), what other runs have made already (takeover), and temporary directories (scratch)."""
