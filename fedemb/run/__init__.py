"""Where a run happens: in this process, on Flower's simulation engine, or deployed."""

import fedemb.flower as fedemb_flower  # before flwr: see there

__all__ = ["fedemb_flower"]
