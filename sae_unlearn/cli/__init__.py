"""The commands of `sae-unlearn`, one file each: `add_arguments(parser)` and `run(args) -> exit code`.

They are thin wrappers of the library's functions. Nothing heavy is imported before `run`.
"""
