"""Rules that decide what is skipped. Floats only, no torch."""

from unicp.policies import error_window as error_window
from unicp.policies import fixed as fixed
from unicp.policies import planned as planned
from unicp.policies.base import CachePolicy as CachePolicy
from unicp.policies.base import policies as policies
