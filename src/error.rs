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
    /// An update was not made.
    #[error(transparent)]
    Update(#[from] crate::optimizer::UpdateError),
    /// The state of an optimizer could not be saved or restored.
    #[error(transparent)]
    State(#[from] crate::optimizer::StateError),
    /// A configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::gpt::ConfigError),
    /// A task could not be set up, scored or trained.
    #[error(transparent)]
    Task(#[from] crate::tasks::TaskError),
    /// A task could not be recorded.
    #[error(transparent)]
    Recording(#[from] crate::tasks::RecordingError),
    /// An evaluation could not be made.
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    /// A report could not be drawn.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// A network could not be read from or written to a file.
    #[error(transparent)]
    NetworkFile(#[from] crate::tasks::NetworkFileError),
    /// A seed is too large.
    #[error(transparent)]
    Seed(#[from] crate::tasks::SeedError),
    /// A checkpoint store, a recording or a data set cannot be used.
    #[error(transparent)]
    Store(#[from] crate::checkpoints::StoreError),
    /// A pass of the engine could not run.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// A G.pt could not be trained, or its training not be saved.
    #[error(transparent)]
    Train(#[from] crate::gpt::TrainError),
    /// A weights file could not be read or written.
    #[error(transparent)]
    Weights(#[from] crate::gpt::WeightsError),
}

/// `Result` with lopt's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
