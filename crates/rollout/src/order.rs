use alloc::string::String;

use dunlin_protocol::Now;
use serde::{Deserialize, Serialize};

use crate::{Plan, State, StopReason};

/// What an operator may tell a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Open no further wave.
    Pause {
        /// Who.
        by: String,
    },
    /// Go on.
    Resume,
    /// Stop, and send the devices back to what they ran.
    Abort {
        /// Who.
        by: String,
    },
    /// Open it to every device at once, past all gates.
    Promote,
    /// Let a wave open that the policy holds for approval.
    Approve {
        /// Index of the wave.
        wave: usize,
    },
    /// A newer rollout takes its place.
    Supersede {
        /// The newer rollout.
        by: String,
    },
}

/// Why an order was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It ended before.
    #[error("the rollout is {0} and never moves again")]
    Ended(&'static str),
    /// It is not in a state in which the order means anything.
    #[error("a rollout that is {state} can not be told to {order}")]
    Unfit {
        /// State.
        state: &'static str,
        /// Order.
        order: &'static str,
    },
    /// The wall clock is unknown.
    #[error("the wall clock is unknown, so the order could not be dated")]
    Clock,
}

impl Plan {
    /// Carries out an order: a new plan, or why not.
    pub fn order(&self, order: Order, now: Now) -> Result<Self, OrderError> {
        if self.state.is_final() {
            return Err(OrderError::Ended(self.state.name()));
        }
        let at_ms = now.wall_ms.ok_or(OrderError::Clock)?;
        let unfit = |order| Err(OrderError::Unfit { state: self.state.name(), order });
        let state = match order {
            Order::Pause { by } => match self.state {
                State::Open { wave, since_ms } => State::Paused { wave, since_ms, by },
                State::Created | State::Paused { .. } => return unfit("pause"),
                State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. } => {
                    return unfit("pause");
                }
            },
            Order::Resume => match self.state {
                State::Paused { wave, since_ms, .. } => State::Open { wave, since_ms },
                State::Created | State::Open { .. } => return unfit("resume"),
                State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. } => {
                    return unfit("resume");
                }
            },
            Order::Abort { by } => State::Stopped { at_ms, reason: StopReason::Operator { by } },
            Order::Promote => State::Promoted { at_ms },
            Order::Approve { wave } => {
                let mut next = self.moved(self.state.clone());
                next.approved.insert(wave);
                return Ok(next);
            }
            Order::Supersede { by } => State::Superseded { at_ms, by },
        };
        Ok(self.moved(state))
    }
}
