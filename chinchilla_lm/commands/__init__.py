"""One file a verb: `add_arguments(parser)` and `run(args, console) -> int`. They parse, wire and print."""
