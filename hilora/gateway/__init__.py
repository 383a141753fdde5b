"""Routing in front of servers that know adapters by name: a prompt comes without a label, and goes on with one."""
