// Package lint holds the rules of the house as tests: which folder may import which, what a file
// may look like, and what the documents promise about the code. Every failure says how to cure it.
//
// The rules read the tree in this process, so the test cache sees every file they depend on; a
// rule is a plain function of a tree, and is itself shown to catch the fault it is for.
package lint
