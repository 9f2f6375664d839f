mod networks {
    use dfdx::prelude::*;

    #[lopt::network]
    pub struct Net {
        hidden: Linear<3, 3>,
        pub output: Linear<3, 1>,
    }
}

fn main() {
    use dfdx::prelude::*;
    let model = Cpu::default().build_module::<networks::Net, f32>();
    let _ = &model.output;
    let _ = &model.hidden;
}
