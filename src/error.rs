//! Every error of the crate in one type.

/// Anything that can go wrong in lopt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layout is inconsistent or does not match.
    #[error(transparent)]
    Layout(#[from] crate::layout::LayoutError),
    /// The parameters of a model could not be read or written.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// A configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::gpt::ConfigError),
    /// A checkpoint store, a recording or a data set cannot be used.
    #[error(transparent)]
    Store(#[from] crate::checkpoints::StoreError),
    /// A pass of the engine could not run.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

/// `Result` with lopt's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
