//! The local HTTP API of the agent.
