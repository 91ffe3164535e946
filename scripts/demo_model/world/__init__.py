"""What there is to see, ask and say: pictures, clips, questions, answers and the synthetic voices that read them."""
