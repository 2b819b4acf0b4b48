"""How good the views are: fixed pairs, figures, baselines, and a report (the paper's section of experiments)."""
