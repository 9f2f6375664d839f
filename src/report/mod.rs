//! Results to look at: tables, SVG figures and one HTML file.
//!
//! A page holds everything it needs (style and figures inline, no scripts, no
//! fonts), so it can be read offline, sent and kept. Ink and lines take the
//! colour of the text around them: pages are readable in light and dark.

mod comparison;
mod diversity;
mod episode;
mod evaluation;
mod figure;
mod format;
mod initialisations;
mod page;
mod picture;
mod table;
mod walk;

pub use comparison::{comparison_figure, comparison_page, comparison_table, episode_figure};
pub use diversity::{diversity_figure, diversity_page, diversity_table};
pub use evaluation::{calibration_table, evaluation_page, evaluation_table, prompting_figure};
pub use initialisations::{initialisations_figure, initialisations_page, initialisations_table};
pub use page::{Provenance, ReportError};
pub use table::Table;
pub use walk::{walk_figure, walk_page, walk_strip, walk_table};
