"""How much filler a prompt of a given length has room for."""


class TooShort(Exception):
    """Not even the least prompt has room; `needed`: its tokens."""

    def __init__(self, needed):
        super().__init__(needed)
        self.needed = needed


def fit(size_of, room, least, guess=None):
    """The amount, least or more, whose prompt takes nearly `room` tokens and not more: within 1 %
    or one step of the amount. size_of(amount) is about linear; where it is not, room is kept all
    the same."""
    low, low_size = least, size_of(least)
    if low_size > room:
        raise TooShort(low_size)
    high, high_size = None, None
    near = room - max(room // 100, 16)
    amount = max(least + 1, guess or 2 * least + 8)
    while low_size < near and (high is None or high - low > 1):
        size = size_of(amount)
        if size <= room:
            gained = (size - low_size) / (amount - low)
            low, low_size = amount, size
        else:
            high, high_size = amount, size
            gained = (high_size - low_size) / (high - low)
        step = int((room - low_size) / gained) if gained > 0 else 2 * low
        amount = low + max(1, step)
        if high is not None:
            amount = min(amount, high - 1)
    return low
