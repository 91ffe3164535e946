"""What a model must bring, and what a stage is: graph, stage protocol, memory needs. Not: how they run."""
