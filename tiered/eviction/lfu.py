"""Least frequently used, with ageing, of a sample."""

from __future__ import annotations

from tiered.eviction.policy import Oldest, Records
from tiered.eviction.sampled import Sampled


class LFU(Sampled):
    """Evict a record that was used least, of a sample.

    A record counts its uses in six bits, in quarters, up to 15.75: a new one has half a use, so that it has a chance to
    be used again, and above five the more it has, the rarer it counts one more.  Both are Redis' ideas (`LFU_INIT_VAL`,
    `lfu-log-factor`), whose counters age by the clock, though.  These age when it matters: where nobody in a sample is
    down to nothing, all who stay lose a quarter of a use, as the predictions of RRIP do (Jaleel, Theobald, Steely and
    Emer, ISCA 2010).  So what was used much, and is no more, leaves in the end: when all that is used less has been
    replaced about twice for each use that it has.  An eviction looks at `SAMPLE` records, and ages as many.
    """

    uses_max = 63
    sparing = True

    def rank(self, record: Oldest) -> int:
        """How often it was used."""
        return record.uses

    def leave(self, records: Records) -> None:
        """Evict one, and have the others age, if it still had some uses."""
        ranks = self.sample(records)
        if not ranks:
            return
        uses, chosen = min(ranks)
        if uses:
            for _, number in ranks:
                records.age_picked(number)
        records.drop_picked(chosen)
