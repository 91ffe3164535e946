"""The subcommands of sgl-omni, and what a terminal shows. Not: the decisions behind them."""
