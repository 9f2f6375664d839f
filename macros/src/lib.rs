//! The `#[lopt::network]` attribute. Its documentation is at `lopt::network`.

mod attributes;
mod describe;
mod expand;
mod parse;
mod validate;
mod wiring;

use proc_macro::TokenStream;

/// Makes a struct of dfdx layers a network that lopt can optimise. See the
/// module `lopt::network`.
#[proc_macro_attribute]
pub fn network(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = proc_macro2::TokenStream::from(item);
    let mut problems = attributes::Problems::default();
    let network = parse::parse(item.clone(), &mut problems).and_then(|network| {
        validate::validate(&arguments.into(), &network, &mut problems);
        problems.into_result().map(|()| network)
    });
    match network {
        Ok(network) => expand::expand(&network),
        // The struct itself is kept, so that its uses are not reported as well.
        Err(error) => parse::without_lopt_attributes(item, error.into_compile_error()),
    }
    .into()
}
