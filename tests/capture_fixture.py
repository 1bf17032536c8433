"""What `pixart_core.graphs.capture_on_cuda` is, on the CPU."""

import torch


class OnCpu:
    """A replay computes on the tensors of the capture, and fills its output. Counts captures and replays."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, call, memory):
        self.captures += 1
        output = call()

        def replay():
            self.replays += 1
            own, new = ([each] if isinstance(each, torch.Tensor) else each for each in (output, call()))
            for one, other in zip(own, new, strict=True):
                if one is not None:
                    one.copy_(other)

        return replay, output, memory or object()
