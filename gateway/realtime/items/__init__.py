"""The items of a conversation: their types, the code that reads and counts them, and the turns that the model gets."""
