"""All that leans on what vLLM does not promise: `names` lists it, `layers` and `hooks` use it, nothing else does.

One minor release of vLLM is taken; another may have moved any of these names, or changed their meaning.
"""
