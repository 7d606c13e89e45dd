"""Skip RNN layers that are called like torch.nn.LSTM and torch.nn.GRU."""

from skipreel.models.layers.rnn import SkipGRU, SkipLSTM

__all__ = ["SkipGRU", "SkipLSTM"]
