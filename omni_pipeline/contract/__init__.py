"""Types that describe a model to the framework: graph, stages, options, memory needs, flags, routes, plans.

The package `stages` makes objects of these types, and the other packages use the objects. The code in this package does
not run stages, choose devices or read configurations.
"""
