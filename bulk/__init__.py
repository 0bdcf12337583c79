"""Classifies the texts of many files with a model archive, on Apache Beam: `python -m bulk`.

The modules in the order of the data's way:

    cli ── reads the options, and prints the summary
    run ── finds the input files, and compares them with an earlier run of the same output
    pipeline ── split ──> Shard ── read ──> Rows ── RunInference (model) ──> ScoredRows ── write ──> output files
                     tables                tables                                        tables, columns
"""
