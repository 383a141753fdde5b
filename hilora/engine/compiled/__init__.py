"""Steps that are captured once and never again: rows, keys and values, adapters and plans are in buffers.

options      what is compiled: how many rows and tokens, and room for how many adapters
structure    the model as it is compiled: adapters' sites are in it from the start, and nothing is hooked to it
held         keys and values of rows, each in a place of its own
step         a token for each of so many rows: captured, and fed by its buffers
bank         adapters in a fixed number of slots, and which requests such steps can serve
"""
