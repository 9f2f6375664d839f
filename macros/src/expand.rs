//! Writes the built struct and the implementations.

use std::collections::HashSet;

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{parse_quote, parse_quote_spanned, GenericParam, Type};

use crate::parse::{Layer, Network};

/// dfdx implements its visitors for tuples of at most this many fields.
const TUPLE: usize = 6;

/// Everything that stands in for the annotated struct.
pub fn expand(network: &Network) -> TokenStream {
    let config = &network.item;
    let built = Built::new(network);
    let parts = [
        built.definition(),
        built.tensor_collection(),
        built.forward(&format_ident!("Module"), &format_ident!("try_forward"), false),
        built.forward(&format_ident!("ModuleMut"), &format_ident!("try_forward_mut"), true),
        built.layer(),
        build_on_device(network, &built),
        config_layer(network),
    ];
    quote! {
        #[allow(dead_code)]
        #config
        #(#parts)*
    }
}

/// The struct that holds the built layers: one type parameter for each field,
/// as dfdx's tuples have, so that changing device or dtype composes.
struct Built<'a> {
    network: &'a Network,
    ident: Ident,
    /// `F0`, `F1`, ...: the types of the fields.
    types: Vec<Ident>,
}

impl<'a> Built<'a> {
    fn new(network: &'a Network) -> Self {
        let ident = format_ident!("Built{}", network.ident());
        let types = (0..network.layers.len()).map(|i| format_ident!("F{i}")).collect();
        Self { network, ident, types }
    }

    fn fields(&self) -> impl Iterator<Item = &'a Ident> {
        self.network.layers.iter().map(|layer| &layer.ident)
    }

    fn definition(&self) -> TokenStream {
        let Self { network, ident, types } = self;
        let visibility = &network.item.vis;
        let docs = format!(
            "[`{}`] built on a device. `lopt::network::Built` names its type for a dtype and a \
             device.",
            network.ident()
        );
        let fields = network.layers.iter().zip(types).map(|(layer, ty)| {
            let Layer { attributes, visibility, ident, .. } = layer;
            let kept = attributes.iter().filter(|attribute| {
                ["doc", "deprecated", "allow"].iter().any(|name| attribute.path().is_ident(name))
            });
            quote!(#(#kept)* #visibility #ident: #ty)
        });
        quote! {
            #[doc = #docs]
            #[allow(missing_docs)]
            #[derive(Clone, Debug)]
            #visibility struct #ident<#(#types),*> { #(#fields),* }
        }
    }

    fn tensor_collection(&self) -> TokenStream {
        let Self { network, ident, types } = self;
        let names = network.layers.iter().map(|layer| &layer.name);
        let fields: Vec<_> = self.fields().collect();
        let visits = names.zip(&fields).map(|(name, field)| {
            quote!(Self::module(#name, |built| &built.#field, |built| &mut built.#field))
        });
        let visits = nest(visits.collect());
        let values: Vec<_> =
            (0..types.len()).map(|i| Ident::new(&format!("f{i}"), Span::mixed_site())).collect();
        let pattern = nest(values.iter().map(|value| quote!(#value)).collect());
        quote! {
            #[automatically_derived]
            impl<
                E: ::lopt::__private::Dtype,
                D: ::lopt::__private::Device<E>,
                #(#types: ::lopt::__private::TensorCollection<E, D>),*
            > ::lopt::__private::TensorCollection<E, D> for #ident<#(#types),*> {
                type To<E2: ::lopt::__private::Dtype, D2: ::lopt::__private::Device<E2>> =
                    #ident<#(#types::To<E2, D2>),*>;

                fn iter_tensors<V: ::lopt::__private::ModuleVisitor<Self, E, D>>(
                    visitor: &mut V,
                ) -> ::lopt::__private::Result<
                    ::lopt::__private::Option<Self::To<V::E2, V::D2>>,
                    V::Err,
                > {
                    ::lopt::__private::ModuleVisitor::visit_fields(
                        visitor,
                        #visits,
                        |#pattern| #ident { #(#fields: #values),* },
                    )
                }
            }
        }
    }

    /// The layers one after the other. `X1`, `X2`, ... are what each one hands
    /// to the next.
    fn forward(&self, module: &Ident, method: &Ident, mutable: bool) -> TokenStream {
        let Self { ident, types, .. } = self;
        let passed: Vec<_> = (0..=types.len()).map(|i| format_ident!("X{i}")).collect();
        let input = &passed[0];
        let output = &passed[types.len()];
        let bounds = types.iter().enumerate().map(|(i, ty)| {
            let (from, to) = (&passed[i], &passed[i + 1]);
            quote!(#ty: ::lopt::__private::#module<#from, Output = #to, Error = X>)
        });
        let (this, borrow) =
            if mutable { (quote!(&mut self), quote!(&mut)) } else { (quote!(&self), quote!(&)) };
        let value = Ident::new("value", Span::mixed_site());
        let fields = self.fields();
        quote! {
            #[automatically_derived]
            impl<#(#passed,)* X: ::lopt::__private::Debug, #(#types),*>
                ::lopt::__private::#module<#input> for #ident<#(#types),*>
            where
                #(#bounds),*
            {
                type Output = #output;
                type Error = X;

                fn #method(
                    #this,
                    #value: #input,
                ) -> ::lopt::__private::Result<Self::Output, Self::Error> {
                    #(
                        let #value =
                            ::lopt::__private::#module::#method(#borrow self.#fields, #value)?;
                    )*
                    ::lopt::__private::Result::Ok(#value)
                }
            }
        }
    }

    fn layer(&self) -> TokenStream {
        let Self { network, ident, types } = self;
        let body = layer_body(network, types.iter().map(|ty| quote!(#ty)));
        quote! {
            #[automatically_derived]
            impl<#(#types: ::lopt::__private::Layer),*> ::lopt::__private::Layer
                for #ident<#(#types),*>
            {
                #body
            }
        }
    }
}

fn build_on_device(network: &Network, built: &Built) -> TokenStream {
    let taken = words(network);
    let element = fresh("E", &taken);
    let device = fresh("D", &taken);
    let mut generics = network.generics().clone();
    generics.params.push(parse_quote!(#element: ::lopt::__private::Dtype));
    generics.params.push(parse_quote!(#device: ::lopt::__private::Device<#element>));
    let clause = generics.make_where_clause();
    for Layer { ty, .. } in &network.layers {
        clause.predicates.push(parse_quote_spanned! {at(ty)=>
            #ty: ::lopt::__private::BuildOnDevice<#device, #element>
        });
    }
    let layers = network.layers.iter().map(|Layer { ty, .. }| {
        quote_spanned! {at(ty)=>
            <#ty as ::lopt::__private::BuildOnDevice<#device, #element>>::Built
        }
    });
    let (parameters, _, clause) = generics.split_for_impl();
    let (_, arguments, _) = network.generics().split_for_impl();
    let (config, built) = (network.ident(), &built.ident);
    quote! {
        #[automatically_derived]
        impl #parameters ::lopt::__private::BuildOnDevice<#device, #element>
            for #config #arguments
        #clause
        {
            type Built = #built<#(#layers),*>;
        }
    }
}

fn config_layer(network: &Network) -> TokenStream {
    let mut generics = network.generics().clone();
    let parameters: HashSet<String> = generics
        .params
        .iter()
        .map(|parameter| match parameter {
            GenericParam::Lifetime(lifetime) => lifetime.lifetime.ident.to_string(),
            GenericParam::Type(ty) => ty.ident.to_string(),
            GenericParam::Const(constant) => constant.ident.to_string(),
        })
        .collect();
    let clause = generics.make_where_clause();
    for Layer { ty, .. } in &network.layers {
        // A bound that depends on no parameter would be checked here, apart
        // from the use below, and an error would be reported twice.
        if mentions(ty, &parameters) {
            clause.predicates.push(parse_quote_spanned!(at(ty)=> #ty: ::lopt::__private::Layer));
        }
    }
    let body = layer_body(
        network,
        network.layers.iter().map(|Layer { ty, .. }| quote_spanned!(at(ty)=> #ty)),
    );
    let (parameters, arguments, clause) = generics.split_for_impl();
    let config = network.ident();
    quote! {
        #[automatically_derived]
        impl #parameters ::lopt::__private::Layer for #config #arguments #clause {
            #body
        }
    }
}

/// Constant and description, from the types of the layers.
fn layer_body(network: &Network, types: impl Iterator<Item = TokenStream>) -> TokenStream {
    let types: Vec<_> = types.collect();
    let names = network.layers.iter().map(|layer| &layer.name);
    let counts = types
        .iter()
        .map(|ty| quote_spanned!(at(ty)=> <#ty as ::lopt::__private::Layer>::PARAMETERS));
    let scopes = names.zip(&types).map(|(name, ty)| {
        quote_spanned! {at(ty)=>
            layout.scope(#name, <#ty as ::lopt::__private::Layer>::describe);
        }
    });
    quote! {
        const PARAMETERS: usize = 0 #(+ #counts)*;

        fn describe(layout: &mut ::lopt::__private::LayoutBuilder) {
            #(#scopes)*
        }
    }
}

/// Where errors about a type are reported; names mean there what they mean in
/// the rest of the expansion.
fn at(ty: &impl Spanned) -> Span {
    Span::call_site().located_at(ty.span())
}

/// Tuples of tuples of at most [`TUPLE`] items, in order.
fn nest(mut items: Vec<TokenStream>) -> TokenStream {
    while items.len() > TUPLE {
        items = items.chunks(TUPLE).map(|chunk| quote!((#(#chunk,)*))).collect();
    }
    quote!((#(#items,)*))
}

/// Every word in the annotated struct.
fn words(network: &Network) -> HashSet<String> {
    let item = &network.item;
    let mut words = HashSet::new();
    collect(quote!(#item), &mut words);
    words
}

fn mentions(ty: &Type, parameters: &HashSet<String>) -> bool {
    let mut words = HashSet::new();
    collect(quote!(#ty), &mut words);
    !words.is_disjoint(parameters)
}

fn collect(tokens: TokenStream, words: &mut HashSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                words.insert(ident.to_string());
            }
            TokenTree::Group(group) => collect(group.stream(), words),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// A parameter name that the annotated struct does not use.
fn fresh(name: &str, taken: &HashSet<String>) -> Ident {
    let mut name = name.to_owned();
    while taken.contains(&name) {
        name.push('_');
    }
    Ident::new(&name, Span::call_site())
}
