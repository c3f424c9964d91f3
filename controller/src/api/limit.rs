//! How often one address may knock.
//!
//! Each address has one number: when it will have paid for what it did (the generic cell rate algorithm,
//! ITU-T I.371). One that owes nothing is forgotten, so memory follows the attackers and not the guests, and is bounded.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;
use axum::http::request::Parts;

use super::{ApiError, ApiResult};
use crate::config;

/// Addresses remembered at once, some 100 bytes each; further ones share one account.
const ADDRESSES_MAX: usize = 8192;

/// Who knocks. An IPv6 subscriber has a whole /64, which therefore counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    One(IpAddr),
    Others,
}

impl Source {
    fn of(address: IpAddr) -> Self {
        Self::One(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        })
    }
}

/// So many a minute from each address, as many at once.
#[derive(Debug)]
pub struct Limiter {
    /// What one knock costs, microseconds.
    cost_us: u64,
    /// Credit of everybody, microseconds.
    credit_us: u64,
    debts: Mutex<BTreeMap<Source, u64>>,
}

impl Limiter {
    /// `per_minute` is at least one.
    pub fn new(per_minute: u32) -> Self {
        let credit_us = 60_000_000;
        Self { cost_us: credit_us / u64::from(per_minute.max(1)), credit_us, debts: Mutex::default() }
    }

    /// The wait before an address may knock; none if it may at once.
    fn wait(&self, address: IpAddr, now_us: u64) -> Option<Duration> {
        let debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        let source = Source::of(address);
        let known = debts.contains_key(&source) || debts.len() < ADDRESSES_MAX;
        let paid_us =
            debts.get(if known { &source } else { &Source::Others }).copied().unwrap_or(0).max(now_us);
        let free_us = (paid_us + self.cost_us).saturating_sub(self.credit_us);
        free_us.checked_sub(now_us).filter(|us| *us > 0).map(Duration::from_micros)
    }

    /// Charges an address for a knock.
    fn charge(&self, address: IpAddr, now_us: u64) {
        let mut debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = Source::of(address);
        if !debts.contains_key(&source) && debts.len() >= ADDRESSES_MAX {
            debts.retain(|_, paid_us| *paid_us > now_us);
            if debts.len() >= ADDRESSES_MAX {
                source = Source::Others;
            }
        }
        let paid_us = debts.entry(source).or_default();
        *paid_us = (*paid_us).max(now_us) + self.cost_us;
    }
}

/// The limits of the API.
#[derive(Debug)]
pub struct Limits {
    started: Instant,
    enrol: Limiter,
    wrong: Limiter,
}

impl Limits {
    /// As configured.
    pub fn new(config: &config::Limits) -> Self {
        let (enrol, wrong) = (Limiter::new(config.enrol_per_minute), Limiter::new(config.wrong_per_minute));
        Self { started: Instant::now(), enrol, wrong }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Counts a request to enrol or to renew, or refuses it.
    pub fn enrol(&self, address: IpAddr) -> ApiResult<()> {
        self.secret(address)?;
        let now_us = self.now_us();
        if let Some(wait) = self.enrol.wait(address, now_us) {
            return Err(ApiError::too_many("this address asks to enrol too often", wait));
        }
        self.enrol.charge(address, now_us);
        Ok(())
    }

    /// Refuses an address that gave too many wrong secrets, before the next one is looked at: an answer to it
    /// would be a guess more.
    pub fn secret(&self, address: IpAddr) -> ApiResult<()> {
        match self.wrong.wait(address, self.now_us()) {
            Some(wait) => {
                Err(ApiError::too_many("too many wrong tokens or claims came from this address", wait))
            }
            None => Ok(()),
        }
    }

    /// Notes a wrong token or claim.
    pub fn wrong(&self, address: IpAddr) {
        self.wrong.charge(address, self.now_us());
    }
}

/// The address a request came from, put there by the accept loop.
pub(super) fn address(parts: &Parts) -> IpAddr {
    let known = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    known.map_or(IpAddr::from([0, 0, 0, 0]), |ConnectInfo(address)| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn knock(limiter: &Limiter, address: IpAddr, now_us: u64) -> bool {
        let free = limiter.wait(address, now_us).is_none();
        if free {
            limiter.charge(address, now_us);
        }
        free
    }

    #[test]
    fn so_many_at_once_then_one_at_a_time_and_each_address_for_itself() {
        let limiter = Limiter::new(10);
        let (a, b) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let now = 1000 * SECOND_US;
        assert_eq!((0..20).filter(|_| knock(&limiter, a, now)).count(), 10);
        assert!(knock(&limiter, b, now));
        assert_eq!(limiter.wait(a, now), Some(Duration::from_secs(6)));
        assert!(!knock(&limiter, a, now + 5 * SECOND_US));
        assert!(knock(&limiter, a, now + 6 * SECOND_US));
        assert!(!knock(&limiter, a, now + 6 * SECOND_US));
        assert_eq!((0..20).filter(|_| knock(&limiter, a, now + 120 * SECOND_US)).count(), 10);
    }

    #[test]
    fn a_subnet_of_version_six_is_one_address_and_a_mapped_one_is_itself() {
        let limiter = Limiter::new(1);
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        assert!(knock(&limiter, address("2001:db8::1"), 1));
        assert!(!knock(&limiter, address("2001:db8::ffff:1"), 1));
        assert!(knock(&limiter, address("2001:db8:0:1::1"), 1));
        assert!(knock(&limiter, address("192.0.2.1"), 1));
        assert!(!knock(&limiter, address("::ffff:192.0.2.1"), 1));
    }

    #[test]
    fn many_addresses_cost_bounded_memory_and_are_limited_together() {
        let limiter = Limiter::new(1);
        let all = (0..20_000_u32).map(|n| IpAddr::from(n.to_be_bytes()));
        let let_in = all.filter(|address| knock(&limiter, *address, 1)).count();
        assert!(limiter.debts.lock().unwrap().len() <= ADDRESSES_MAX + 1);
        assert_eq!(let_in, ADDRESSES_MAX + 1);
        assert!(knock(&limiter, IpAddr::from([198, 51, 100, 1]), 90 * SECOND_US), "debts are paid with time");
    }
}
