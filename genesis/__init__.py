"Generative models of whole neutrino events for IceCube."
__version__ = "0.3.0"

def __getattr__(name):
    raise AttributeError(f"module 'genesis' (generative models of IceCube events, in {__path__[0]}) has no attribute {name!r}. "
                         "Other packages are imported under this name too: `genesis doctor` tells which ones Python finds.")
