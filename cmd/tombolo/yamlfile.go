package main

import (
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxYAMLNodes is how much a file may come to when each of its aliases stands for what it names: far
// more than the largest environment, and little memory.
const maxYAMLNodes = 1_000_000

// decodeYAML reads a file of one YAML document into v. A few lines of aliases of aliases
// (YAML 1.2.2, 7.1) can stand for more than any memory holds, so that is counted before anything is made of
// them; and of several documents none is passed over silently.
func decodeYAML(file string, b []byte, v any, options ...yaml.DecodeOption) error {
	parsed, err := parser.ParseBytes(b, 0)
	if err != nil {
		return err
	}
	if len(parsed.Docs) > 1 {
		return fail(exitError, "yaml-invalid", "%s has %d YAML documents; it is to have one", file, len(parsed.Docs)).
			withNext("a file for each")
	}
	count := yamlCount{named: map[string]int{}}
	for _, d := range parsed.Docs {
		count.add(d.Body)
	}
	if count.nodes > maxYAMLNodes {
		return fail(exitError, "yaml-too-large", "%s comes to more than %d values with its aliases", file, maxYAMLNodes).
			withNext("write out what the aliases stand for, or divide the file")
	}
	return yaml.UnmarshalWithOptions(b, v, options...)
}

// yamlCount counts nodes, an alias as all that its anchor named. It never exceeds the limit by more than one.
type yamlCount struct {
	nodes int
	named map[string]int
}

func (c *yamlCount) add(n ast.Node) {
	if n != nil {
		ast.Walk(c, n)
	}
}

// Visit implements ast.Visitor.
func (c *yamlCount) Visit(n ast.Node) ast.Visitor {
	size := 1
	switch n := n.(type) {
	case *ast.AnchorNode:
		before := c.nodes
		c.add(n.Value)
		c.named[yamlName(n.Name)] = c.nodes - before
		return nil
	case *ast.AliasNode:
		size += c.named[yamlName(n.Value)]
	}
	c.nodes = min(c.nodes+size, maxYAMLNodes+1)
	if c.nodes > maxYAMLNodes {
		return nil
	}
	return c
}

func yamlName(n ast.Node) string { return strings.TrimSpace(n.String()) }
