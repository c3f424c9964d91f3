use dunlin_protocol::ReasonCode;

/// Why a model could not be loaded or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The bytes are no sound ONNX file.
    #[error("reading the model: {0}")]
    Malformed(String),
    /// The file uses an operator or feature this engine refuses.
    #[error("{what} at node {node:?} is not supported: {advice}")]
    Unsupported {
        /// The operator (`domain/Name`) or feature.
        what: String,
        /// The node that uses it; empty if it is not about a node.
        node: String,
        /// What to do instead.
        advice: String,
    },
    /// A bound of this engine is exceeded.
    #[error("{what} is {got}, the limit is {limit}")]
    TooLarge {
        /// What was measured.
        what: String,
        /// Its size.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// The runtime refused the graph.
    #[error("preparing the model: {0}")]
    Prepare(String),
    /// An input is not what the model takes.
    #[error("input {name:?}: {problem}")]
    Input {
        /// Name of the input.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Running the model failed.
    #[error("running the model: {0}")]
    Run(String),
    /// The runtime panicked; the panic was caught.
    #[error("the runtime panicked while {doing}: {message}")]
    Panicked {
        /// What was going on.
        doing: &'static str,
        /// The panic's message.
        message: String,
    },
}

impl EngineError {
    /// The code under which this crosses the wire.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed(_) | Self::TooLarge { .. } => ReasonCode::ModelMalformed,
            Self::Unsupported { .. } | Self::Prepare(_) => ReasonCode::ModelUnsupported,
            Self::Input { .. } | Self::Run(_) | Self::Panicked { .. } => ReasonCode::ModelFailed,
        }
    }

    /// Whether the caller's input was at fault rather than the model.
    pub fn is_input(&self) -> bool {
        matches!(self, Self::Input { .. })
    }
}
