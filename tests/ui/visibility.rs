pub mod networks {
    use dfdx::prelude::*;

    #[lopt::network]
    struct Hidden {
        map: Linear<3, 3>,
    }

    // Its built type would give away a private one.
    #[lopt::network]
    pub struct Visible {
        hidden: Hidden,
    }
}

fn main() {}
