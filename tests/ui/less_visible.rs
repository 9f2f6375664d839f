use dfdx::prelude::*;

mod networks {
    use dfdx::prelude::*;

    #[lopt::network]
    struct Inner {
        map: Linear<3, 3>,
    }

    #[lopt::network]
    pub struct Outer {
        inner: Inner,
        pub output: Linear<3, 1>,
    }
}

fn main() {
    let model = Cpu::default().build_module::<networks::Outer, f32>();
    let _ = model.inner;
}
