"""Weighted fairness between tenants by counted tokens.

The virtual token counter of Sheng et al. (arXiv 2401.00588): the waiting tenant with the least
service goes first; input counts 1, output 2, divided by the tenant's weight; a tenant that comes
back is lifted to the least counter of the waiting ones, so that idling earns no credit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INPUT_COST = 1.0
OUTPUT_COST = 2.0
MAX_IDLE_ACCOUNTS = 4096


@dataclass(slots=True, eq=False)
class TenantAccount:
    """Service of one tenant in weighted tokens."""

    tenant: str
    input_cost: float
    output_cost: float
    served: float = 0.0
    num_requests: int = 0

    def charge_input(self, num_tokens: int) -> None:
        """Prompt tokens were computed for this tenant."""
        self.served += num_tokens * self.input_cost

    def charge_output(self) -> None:
        """A token was sampled for this tenant."""
        self.served += self.output_cost


class TenantLedger:
    """The accounts of all tenants; bounded, since idle ones with little service are forgotten."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._accounts: dict[str, TenantAccount] = {}
        self._next_sweep = MAX_IDLE_ACCOUNTS

    def open(self, tenant: str) -> TenantAccount:
        """The account for one more request of `tenant`."""
        account = self._accounts.get(tenant)
        if account is None:
            self._forget_idle()
            weight = self._weights.get(tenant, 1.0)
            account = TenantAccount(tenant, INPUT_COST / weight, OUTPUT_COST / weight)
            self._accounts[tenant] = account
        if not account.num_requests:
            others = (a.served for a in self._accounts.values() if a.num_requests)
            account.served = max(account.served, min(others, default=0.0))
        account.num_requests += 1
        return account

    def close(self, account: TenantAccount) -> None:
        """One request of the account's tenant has ended."""
        account.num_requests -= 1

    def _forget_idle(self) -> None:
        if len(self._accounts) < self._next_sweep:
            return
        idle = [a for a in self._accounts.values() if not a.num_requests]
        idle.sort(key=lambda account: account.served)
        for account in idle[: len(idle) - MAX_IDLE_ACCOUNTS // 2]:
            del self._accounts[account.tenant]
        self._next_sweep = len(self._accounts) + MAX_IDLE_ACCOUNTS // 2
