"""The joint objective: what alpha means, which domains train, what each loss is and how they combine."""
