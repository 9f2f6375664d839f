//! Writes what a network says about itself to a layout: its fields in order,
//! wired as the forward pass is.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};

use crate::attributes::Forward;
use crate::expand::at;
use crate::parse::Network;
use crate::wiring::{Part, Step, Wiring};

/// Statements that describe the fields, which have these types, to `layout`.
pub fn describe(network: &Network, types: &[TokenStream]) -> TokenStream {
    let mut fields = Fields { network, types, described: 0 };
    match &network.forward {
        Forward::Sequence => (0..network.fields.len()).map(|i| fields.in_sequence(i)).collect(),
        Forward::Unknown => {
            let unwired = fields.unwired(network.fields.len());
            quote!(#unwired layout.opaque("..");)
        }
        Forward::Wired(wiring) => {
            let wired = fields.wiring(wiring);
            let unwired = fields.unwired(network.fields.len());
            quote!(#wired #unwired)
        }
    }
}

struct Fields<'a> {
    network: &'a Network,
    types: &'a [TokenStream],
    /// Number of fields that are described: tensors come in the order of the
    /// fields, whether the wiring names them or not.
    described: usize,
}

impl Fields<'_> {
    fn in_sequence(&self, index: usize) -> TokenStream {
        let field = self.field(index);
        match self.network.fields[index].options.residual {
            Some(_) => quote!(layout.residual(|layout| { #field });),
            None => field,
        }
    }

    fn field(&self, index: usize) -> TokenStream {
        let field = &self.network.fields[index];
        let (name, ty) = (&field.name, &self.types[index]);
        if field.is_parameter() {
            let tensor = quote_spanned! {at(ty)=>
                <#ty as ::lopt::__private::BareTensor>::describe(layout, #name);
            };
            return match field.is_flat() {
                true => tensor,
                false => quote!(layout.frozen(|layout| { #tensor });),
            };
        }
        let describe = quote_spanned!(at(ty)=> <#ty as ::lopt::__private::Layer>::describe);
        match field.is_flat() {
            true => quote_spanned!(at(ty)=> layout.scope(#name, #describe);),
            false => quote!(layout.scope(#name, |layout| layout.frozen(#describe));),
        }
    }

    /// The fields up to this one, which the wiring does not name.
    fn unwired(&mut self, end: usize) -> TokenStream {
        let fields = self.described..end;
        self.described = end;
        fields
            .map(|index| {
                let field = self.field(index);
                quote!(layout.unwired(|layout| { #field });)
            })
            .collect()
    }

    fn wiring(&mut self, wiring: &Wiring) -> TokenStream {
        wiring.0.iter().map(|step| self.step(step)).collect()
    }

    fn step(&mut self, step: &Step) -> TokenStream {
        match step {
            Step::Part(part) => self.part(part),
            Step::Sum(parts) => self.sum(parts),
            Step::Split(parts) => {
                let builder = quote!(&mut ::lopt::__private::LayoutBuilder);
                let bodies = parts.iter().map(|part| match part {
                    Part::Input(_) => quote!(&|_: #builder| {}),
                    part => {
                        let body = self.part(part);
                        quote!(&|layout: #builder| { #body })
                    }
                });
                let bodies: Vec<_> = bodies.collect();
                quote!(layout.split(&[#(#bodies),*]);)
            }
        }
    }

    /// Two bodies at a time; what arrives is added around all others.
    fn sum(&mut self, parts: &[Part]) -> TokenStream {
        let (inputs, others): (Vec<_>, Vec<_>) =
            parts.iter().partition(|part| matches!(part, Part::Input(_)));
        let bodies: Vec<_> = others.into_iter().map(|part| self.part(part)).collect();
        let sum = bodies
            .into_iter()
            .rev()
            .reduce(|sum, body| quote!(layout.parallel(|layout| { #body }, |layout| { #sum });));
        inputs
            .iter()
            .fold(sum.unwrap_or_default(), |sum, _| quote!(layout.residual(|layout| { #sum });))
    }

    fn part(&mut self, part: &Part) -> TokenStream {
        match part {
            Part::Field(ident) => {
                // Checked before.
                let Some(index) = self.network.position(ident) else { return TokenStream::new() };
                let unwired = self.unwired(index);
                self.described = index + 1;
                let field = self.field(index);
                quote!(#unwired #field)
            }
            Part::Layer(ty) => {
                quote_spanned!(at(ty)=> <#ty as ::lopt::__private::Layer>::describe(layout);)
            }
            Part::Input(_) => TokenStream::new(),
            Part::Unknown => quote!(layout.opaque("..");),
            Part::Nested(wiring) => self.wiring(wiring),
        }
    }
}
