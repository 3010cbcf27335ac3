from scripts.benchmark.command import command

command(prog_name="scripts/bench")
