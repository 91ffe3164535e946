"""Makes the demo model's world: its pictures, clips, questions and answers, and the synthetic voices that speak
them.
"""
