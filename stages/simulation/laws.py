"""The published times of the steps of Qwen3-Omni-30B-A3B. A *law* (`StepLaw`) computes the time of a step from its
batch.

Table 2 of the technical report of Qwen3-Omni (arXiv 2509.17765) contains these times for 1, 4 and 6 requests at a time.
The times were measured with vLLM. For the MTP module and the codec decoder, torch.compile and CUDA graphs were used.
The report does not say which GPU was used.

    thinker, tokens per second of a request     75     63     53      a step: 13.3   15.9   18.9 ms
    talker, tokens per second of a request     140    125    110      a step:  7.1    8.0    9.1 ms
    MTP module (code predictor), per frame                                    14     16     18   ms
    codec decoder (vocoder), per frame                                         3      5      5   ms

The sum of the four times, divided by the 80 ms of a frame, is the report's generation RTF. With one request, this is
37.4 / 80 = 0.47. For each of the four rows, the law is a straight line, fitted to the times in the row by least
squares. Beyond 6 requests, the laws extrapolate, because the report has no figures for more requests. For the vocoder,
the law uses the number of frames in a batch instead of the report's number of requests.

The report contains times to the first token, but not the length of the prompts. In these laws, a prefill takes the time
of a decode step plus additional time for each token. The additional time is that of two operations per active
parameter, at 400 TFLOP/s (40 % of NVIDIA's figure for bfloat16 on an H100). The prompts of the measurements are short,
so the additional time hardly matters. The vision tower has 543 million parameters and computes 4 patches for each image
token. So an image token takes 4 times two operations for each of these parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from omni_pipeline.contract.simulation import LawSet, StepLaw

_FLOPS = 400e12

REQUESTS = (1, 4, 6)
THINKER_STEP = tuple(1000 / rate for rate in (75, 63, 53))
TALKER_STEP = tuple(1000 / rate for rate in (140, 125, 110))
PREDICTOR_FRAME = (14.0, 16.0, 18.0)
VOCODER_FRAME = (3.0, 5.0, 5.0)
"""Milliseconds per frame for each number of requests in `REQUESTS`. The three constants above have
milliseconds per step or per frame for the same numbers of requests.
"""


def fit(milliseconds: Sequence[float], *, active: float = 0.0) -> StepLaw:
    """The straight line that fits best to the times for the batch sizes in `REQUESTS`.

    Args:
        milliseconds: The times, in the same order as the batch sizes in `REQUESTS`.
        active: Number of parameters that compute a token.
    """
    mean_items, mean = sum(REQUESTS) / len(REQUESTS), sum(milliseconds) / len(milliseconds)
    products = sum((items - mean_items) * (time - mean) for items, time in zip(REQUESTS, milliseconds, strict=True))
    slope = products / sum((items - mean_items) ** 2 for items in REQUESTS)
    return StepLaw((mean - slope * mean_items) / 1000, slope / 1000, 2 * active / _FLOPS)


PUBLISHED = LawSet(
    {
        "image_encoder": StepLaw(token=2 * 4 * 0.543e9 / _FLOPS),
        "thinker": fit(THINKER_STEP, active=3.3e9),
        "talker_ar": fit(TALKER_STEP, active=0.3e9),
        "code_predictor": fit(PREDICTOR_FRAME),
        "code2wav": fit(VOCODER_FRAME),
    },
    "Straight lines through the times for 1, 4 and 6 requests in table 2 of the technical report of Qwen3-Omni (arXiv "
    "2509.17765). The report does not name the GPU. For more than 6 requests, the lines are extrapolated.",
)
