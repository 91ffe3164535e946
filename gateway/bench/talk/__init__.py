"""`sgl-omni bench --realtime`: simulated users (*talkers*) that have spoken conversations with a server of OpenAI's
Realtime API. In this package, the talker is not the stage of the model with the same name.
"""
