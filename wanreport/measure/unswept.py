"""Has Python not look for garbage; imported before what takes long to import.

Imports leave none, and looking for it took a quarter of their time.
"""

import gc

gc.disable()
