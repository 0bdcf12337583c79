"""Classifies the texts of many files with a model archive, on Apache Beam: `python -m bulk`.

The modules, in the order in which the data passes through them:

    cli ── reads the options, starts the processes of this machine (workers, worker), and prints the summary
    run ── finds the input files, compares them with an earlier run of the same output, and chooses the runner (local)
    pipeline ── split ──> Shard ── read ──> Rows ── RunInference (model) ──> ScoredRows ── write ──> output files
                     tables                tables                                        tables, columns
"""
