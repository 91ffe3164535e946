"""The stages of Qwen3-Omni without their networks, for simulations of a deployment (`contract.simulation`).

To decide the order of their work, the speech stages use the modules of the real stages (`talker_ar.voice_order`,
`talker_ar.text_pace`, `code2wav.chunk_order`). The engines of thinker and talker follow SGLang's rule: an engine
computes new prompts first. If no new prompt can start, the engine makes one decode step for all requests. Nothing here
imports torch.

- `engine`: a continuous batch.
- `preparing`: the stages before the thinker, and the stage `decode`.
- `thinker`, `talker`, `code_predictor`, `vocoder`: the other stages, one stage in each module.
- `laws`: the published times of the stages' steps.
- `model`: combines the other modules. The graph names this module.
"""
