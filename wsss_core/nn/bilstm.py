"""A recurrent network over the rows and columns of a grid of patch embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HVBiLSTM(nn.Module):
    """HV-BiLSTM: each patch's embedding in the light of its row and its column (ViT-PCM, Rossetti et al. 2022; APC, Sec. 3.2).

    A bidirectional LSTM reads the rows, another the columns; their outputs, a quarter of the embedding for each of the four
    directions, are concatenated. (The papers do not give the sizes: those of the code of ViT-PCM.)

    Parameters
    ----------
    dim
        Size D of the embedding, a multiple of 4.

    Raises
    ------
    ValueError
        For another size.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"expected an embedding whose size is a multiple of 4, got {dim}")
        self.horizontal = nn.LSTM(dim, dim // 4, batch_first=True, bidirectional=True)
        self.vertical = nn.LSTM(dim, dim // 4, batch_first=True, bidirectional=True)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return [N, D, h, w], the first half of the channels from the rows, the second from the columns, of embeddings [N, D, h, w]."""
        with torch.autocast(embeddings.device.type, enabled=False):  # on a GPU it would be float16, too coarse for the contrast's gradient
            rows = _along_rows(self.horizontal, embeddings.float())
            columns = _along_rows(self.vertical, embeddings.float().transpose(2, 3)).transpose(2, 3)
        return torch.cat([rows, columns], dim=1)


def _along_rows(lstm: nn.LSTM, embeddings: Tensor) -> Tensor:
    """Run over every row of [N, D, h, w]; return [N, D', h, w]."""
    count, _, height, width = embeddings.shape
    rows = embeddings.permute(0, 2, 3, 1).flatten(0, 1)
    return lstm(rows)[0].view(count, height, width, -1).permute(0, 3, 1, 2)
