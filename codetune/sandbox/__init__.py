"""Runs untrusted Python programs and returns what their calls returned. It knows nothing of benchmarks.

`launcher` starts a zygote and sends it a program, `zygote` forks and confines a process for it, `program` makes the
calls there, and `serialization` carries the values back. `tiers` lists the kinds of confinement, `probe` finds out
which of them work on this machine, `confinement` and `seccomp` make the system calls, `shortage` waits for a process.
`examples` runs a program with the examples that come with it.
"""
