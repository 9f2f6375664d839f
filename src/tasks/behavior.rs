//! What the behavioural loss compares networks of a task on.

use super::Task;
use crate::gpt::{Behavior, BehaviorError};

/// Answers to examples of a task's training split.
pub struct TaskBehavior {
    task: Box<dyn Task>,
    queries: usize,
}

impl TaskBehavior {
    /// Compares networks on `queries` examples, drawn anew each time.
    pub fn new(task: Box<dyn Task>, queries: usize) -> Self {
        Self { task, queries }
    }
}

impl Behavior for TaskBehavior {
    fn divergence(
        &self,
        seed: u64,
        predicted: &[f32],
        target: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, BehaviorError> {
        Ok(self.task.divergence(seed, self.queries, predicted, target, gradient)?)
    }

    fn describe(&self) -> String {
        format!("{} inputs of task `{}`", self.queries, self.task.name())
    }
}
