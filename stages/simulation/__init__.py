"""The stages of Qwen3-Omni without their networks, for simulations of a deployment (`contract.simulation`).

To decide the order of their work, the speech stages use the modules of the real stages (`talker_ar.voice_order`,
`talker_ar.text_pace`, `code2wav.chunk_order`). The engines of thinker and talker follow SGLang's rule: prompts first,
then one decode step for all requests. Nothing here imports torch.

- `engine`: a continuous batch.
- `preparing`: the stages before the thinker, and the stage decode.
- `thinker`, `talker`, `code_predictor`, `vocoder`: one of the other stages each.
- `laws`: the published times of the steps.
- `model`: the parts together. The graph names this module.
"""
