"""The stages of Qwen3-Omni without their networks, for simulations of a deployment (`contract.simulation`).

The stages that speak use the real orders of work (`talker_ar.voice_order`, `talker_ar.text_pace`,
`code2wav.chunk_order`). The engines of thinker and talker follow SGLang's rule: prompts first, then one decode step for
all requests. Nothing here imports torch.

- `engine`: a continuous batch.
- `preparing`: the stages before the thinker, and decode.
- `thinker`, `talker`, `code_predictor`, `vocoder`: the stage of this name.
- `laws`: the published times of the steps.
- `model`: the parts together. The graph names this module.
"""
